"""What a processing-in-memory device counts, and the reference of its ops."""
