"""What the benchmark of the server is made of: a shop, its peers, and a load generator."""
