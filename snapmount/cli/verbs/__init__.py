"""What each verb does: a module for each, which imports what that verb needs and is imported when it runs."""
