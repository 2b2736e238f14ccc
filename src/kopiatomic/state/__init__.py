"""What is kept between runs and shared by them: records, locks, marks, directories."""
