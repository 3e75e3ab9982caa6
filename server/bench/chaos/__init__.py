"""`mochi-server bench chaos`: faults on real processes, and Jepsen's accounting of them."""
