"""The checks of `aibridge doctor`. Each module has functions that return checks, and never raise for what they find."""
