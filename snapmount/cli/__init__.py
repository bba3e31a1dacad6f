"""The command line: its grammar, what each verb does, and what is printed."""
