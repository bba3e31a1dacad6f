"""What is written down of a snapshot: in its runtime directory, and in the journal, which outlives a reboot."""
