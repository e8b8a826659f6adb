"""What people type: run, prepare and compare, and their configuration groups."""
