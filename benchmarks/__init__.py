"""How fast the suite is, beside the documented practice of the field: see README.md here."""
