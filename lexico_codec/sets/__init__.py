"""Dictionary sets: their kinds, their files, and the one place that chooses and checks one."""
