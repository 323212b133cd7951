module fastsmtp.invalid/interop/netsmtp

go 1.21
