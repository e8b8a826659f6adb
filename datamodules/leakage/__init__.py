"""What train lists would give away of evaluation queries."""
