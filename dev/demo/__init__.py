"""What ./demo shows: files that change all the time, backed up once with plain kopia and once with kopiatomic."""
