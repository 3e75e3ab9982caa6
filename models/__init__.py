"""What Mochi 1 accepts and does: parameters, engines, frames to MP4. Knows no jobs, no HTTP."""
