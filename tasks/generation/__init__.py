"""Text that models write by themselves: how it is decoded, drawn and brought into the form that is scored."""
