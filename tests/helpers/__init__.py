"""What tests share: seeded weights, transcriptions, partners in other libraries."""
