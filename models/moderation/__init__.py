"""Whether a prompt may be drawn and a video be published. Off by default; knows no jobs, no HTTP.

The prompt is judged before the engine works, the frames on their way to the encoder. The
classifiers, in `models/moderation/classifiers`, are all that needs torch.
"""
