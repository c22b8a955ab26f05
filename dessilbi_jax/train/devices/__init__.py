"""Where a run computes: meshes of devices, several processes, the allocator of a CPU."""
