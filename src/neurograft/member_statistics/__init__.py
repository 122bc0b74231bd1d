"""What members bring instead of data: statistics of their own samples, one small file each."""
