"""The plan of a fusion: for every group and member two matrices; printed and saved."""
