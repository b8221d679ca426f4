"""What decisions were worth: measured by experiments, and by replaying logged choices."""
