"""What happens to a snapshot, and to the guest, when something else breaks: on real processes, none of them faked."""
