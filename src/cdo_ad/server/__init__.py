"""The inspection server: Open Inference Protocol, uploads, history, teaching, the line, and a page for people."""
