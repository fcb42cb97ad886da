"""Does the doctor see what it claims to see? Planted faults, real training, frozen rules."""
