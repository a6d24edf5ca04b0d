"""Pages for people: one self-contained HTML file each, of data, a training, a study, or several runs side by side."""
