"""What `m2chat` runs, a module a command."""
