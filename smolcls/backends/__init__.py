"""The built-in backends, one file each; each imports its own library late, and never another backend."""
