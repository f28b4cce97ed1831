"""Conditioning of the model per view: view-dependent prompts and ControlNet images."""
