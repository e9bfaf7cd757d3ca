"""What `sweeps analyze` measured, read from files. `analysis.diagnostics` computes it, and needs torch.

Files:

    sheets  tables
    figure  spectra, CKA, loss planes and others
"""
