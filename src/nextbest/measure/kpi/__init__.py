"""Key figures: declared once, reduced to sums in the database, judged against a baseline."""
