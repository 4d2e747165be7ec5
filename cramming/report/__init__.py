"""Tables and figures: pure functions of records and of the paper's numbers. Nothing is computed anew here."""
