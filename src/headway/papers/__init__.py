"""The two published systems that Headway implements whole, each to read beside its abstract."""
