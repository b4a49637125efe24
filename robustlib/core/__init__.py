"""What every floor above uses: checks, random numbers, paths, devices, checked files, the store."""
