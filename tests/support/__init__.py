"""What the tests share: fixtures, and the machinery that runs tests/zfs in the VM."""
