"""Side-by-side measurements of Castgate and of other ways to stand in front of the same upstream."""
