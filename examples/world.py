"""Says what a program can see from inside its container."""
import os

interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
print("user", os.getuid(), "on", os.uname().nodename)
print("at the root:", *sorted(os.listdir("/")))
print("network interfaces:", *interfaces)
print("standard input:", input())
