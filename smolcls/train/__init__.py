"""From labelled rows to a fine-tuned adapter. Imported by the command line alone, inside its command."""
