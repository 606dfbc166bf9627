"""New products and new versions: uploads, trainings in processes of their own, corrections."""
