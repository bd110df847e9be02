//! Kernel calls, memory maps and resumable inflate behind safe types; the only unsafe code.
