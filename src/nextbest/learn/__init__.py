"""Learn: from labelled snapshots to models that can be stored, compared and served."""
