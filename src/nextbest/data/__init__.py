"""From raw customer history to features, labels, snapshots and profiles."""
