"""What kopiatomic costs, measured beside what it is measured by, in one run. Started by ./bench; see docs/performance.md."""
