"""README's tables and pictures, made of records."""
