"""What happened, for whom, and what to look at: one page, and the data behind every chart."""
