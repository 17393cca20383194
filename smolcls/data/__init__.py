"""Labelled rows: their schema, checks, split, and two ways to make more. Knows tasks, and no model's inside."""
