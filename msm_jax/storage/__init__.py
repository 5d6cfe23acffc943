"""What lies on disks, in object stores and on the hub; and how far a long job is."""
