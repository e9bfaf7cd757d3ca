"""placeholder until the process is written"""
