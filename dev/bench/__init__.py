"""What kopiatomic costs, measured beside what it is measured by, in one run. Started by ./bench; see dev/README.md."""
