"""A store on a disk that loses power: what a process did to its files is recorded, and replayed up to any call."""
