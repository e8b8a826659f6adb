"""What people type: run, prepare, compare, bench, dashboard and mteb, and their configuration groups."""
