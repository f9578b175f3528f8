//! The kernel's side of a question: a system call that waits for its answer (`seccomp_unotify(2)`),
//! and the memory of who asks.

use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp, sock_filter};
use rustix::io::Errno;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP` (Linux 6.6): who asks runs on this core at once.
const SYNC_WAKE_UP: u64 = 1;
/// The longest path, with its end.
const PATH_MAX: usize = 4096;
/// Memory is mapped in units that this divides.
const PAGE: u64 = 4096;

/// A system call that waits.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Question {
    /// Names it in answers.
    id: u64,
    /// The thread, in the pid namespace of who hears this.
    pub(in super::super) thread: u32,
    /// `AUDIT_ARCH_*`
    pub(in super::super) architecture: u32,
    pub(in super::super) number: u32,
    pub(super) arguments: [u64; 6],
}

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Answer {
    /// The kernel executes it.
    Continue,
    /// It returns this.
    Value(u32),
    /// It has returned already.
    Given,
}

/// Where questions come in.
#[derive(Debug)]
pub(in super::super) struct Listener(OwnedFd);

/// Filters all further system calls of this process through `program`; questions come in at the
/// descriptor. Needs `CAP_SYS_ADMIN`.
pub(in super::super) fn install_filter(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let asking = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Signals wait for answers: what was done for a call that then starts anew would be done twice.
    let patient = asking | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    match install(program, patient) {
        // Before Linux 5.19.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(program, asking),
        result => result,
    }
}

fn install(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` describes memory that outlives the call; the kernel copies and checks it.
    let descriptor = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    if descriptor == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

impl Listener {
    pub(in super::super) fn new(descriptor: OwnedFd) -> Self {
        let listener = Self(descriptor);
        // Faster where the kernel knows it, and the same where not.
        // SAFETY: takes flags by value.
        let _ = unsafe {
            libc::ioctl(listener.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP)
        };
        listener
    }

    /// Waits for a question; `None` when who asked is gone already.
    pub(in super::super) fn receive(&self) -> io::Result<Option<Question>> {
        // SAFETY: plain data, for which zeroes are valid and which the kernel wants zeroed.
        let mut asked: seccomp_notif = unsafe { std::mem::zeroed() };
        let result = self.control(libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked);
        match result {
            Ok(()) => {}
            Err(Errno::INTR | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        Ok(Some(Question {
            id: asked.id,
            thread: asked.pid,
            architecture: asked.data.arch,
            number: asked.data.nr.cast_unsigned(),
            arguments: asked.data.args,
        }))
    }

    /// Answers a question. Who asked may be gone by now.
    pub(in super::super) fn answer(
        &self,
        question: &Question,
        answer: Result<Answer, Errno>,
    ) -> io::Result<()> {
        let mut response = seccomp_notif_resp { id: question.id, val: 0, error: 0, flags: 0 };
        match answer {
            Ok(Answer::Given) => return Ok(()),
            Ok(Answer::Continue) => {
                response.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE)
                    .expect("it is a small number");
            }
            Ok(Answer::Value(value)) => response.val = value.into(),
            Err(error) => response.error = -error.raw_os_error(),
        }
        match self.control(libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) {
            Ok(()) | Err(Errno::NOENT | Errno::INPROGRESS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Answers with a descriptor of its own for who asked: one for the same open file.
    pub(super) fn answer_with_file(
        &self,
        question: &Question,
        file: BorrowedFd<'_>,
        close_on_exec: bool,
    ) -> Result<Answer, Errno> {
        let mut added = seccomp_notif_addfd {
            id: question.id,
            flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SEND).expect("it is a small number"),
            srcfd: file.as_raw_fd().cast_unsigned(),
            newfd: 0,
            newfd_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
        };
        self.control(libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut added).map(|()| Answer::Given)
    }

    /// Whether the call still waits, so that what was found by its thread's number is of that
    /// thread.
    pub(super) fn is_waiting(&self, question: &Question) -> bool {
        let mut id = question.id;
        self.control(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id).is_ok()
    }

    fn control<T>(&self, request: libc::Ioctl, data: *mut T) -> Result<(), Errno> {
        // SAFETY: callers pass the structure that goes with the request, which outlives the call.
        // A result that is not negative tells nothing more.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, data) };
        if result < 0 { Err(last_error()) } else { Ok(()) }
    }
}

impl Question {
    /// An argument that is a pointer, a size, or the like.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.arguments[index]
    }

    /// An argument that has 32 bits.
    pub(super) fn number(&self, index: usize) -> u32 {
        u32::try_from(self.arguments[index] & u64::from(u32::MAX)).expect("it has 32 bits")
    }

    /// An argument that is a descriptor, or `AT_FDCWD`.
    pub(in super::super) fn descriptor(&self, index: usize) -> i32 {
        self.number(index).cast_signed()
    }

    /// The text that an argument points to.
    pub(in super::super) fn text(&self, index: usize) -> Result<CString, Errno> {
        let mut address = self.word(index);
        let mut bytes = Vec::new();
        while bytes.len() < PATH_MAX {
            // What follows on the next page may not be there.
            let rest = usize::try_from(PAGE - address % PAGE).expect("pages are small");
            let start = bytes.len();
            bytes.resize(start + rest, 0);
            if self.read(address, &mut bytes[start..])? != rest {
                return Err(Errno::FAULT);
            }
            if let Some(end) = bytes[start..].iter().position(|byte| *byte == 0) {
                bytes.truncate(start + end);
                return CString::new(bytes).map_err(|_| Errno::INVAL);
            }
            address += rest as u64;
        }
        Err(Errno::NAMETOOLONG)
    }

    /// `count` words of 32 bits from where an argument points to.
    pub(super) fn numbers(&self, index: usize, count: usize) -> Result<Vec<u32>, Errno> {
        let mut bytes = vec![0; count * 4];
        self.fill(index, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| u32::from_ne_bytes(*word)).collect())
    }

    /// Fills `bytes` with what an argument points to.
    pub(super) fn fill(&self, index: usize, bytes: &mut [u8]) -> Result<(), Errno> {
        let whole = self.read(self.word(index), bytes)? == bytes.len();
        if whole { Ok(()) } else { Err(Errno::FAULT) }
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let length = bytes.len();
        let mut local = IoSliceMut::new(bytes);
        // SAFETY: an `IoSliceMut` is an `iovec`; the other one is of another process, which the
        // kernel looks after.
        let result = unsafe {
            libc::process_vm_readv(
                self.process()?,
                (&raw mut local).cast(),
                1,
                &remote(address, length)?,
                1,
                0,
            )
        };
        usize::try_from(result).map_err(|_| last_error())
    }

    /// Writes to where an argument points to.
    pub(super) fn write(&self, index: usize, bytes: &[u8]) -> Result<(), Errno> {
        let local = IoSlice::new(bytes);
        // SAFETY: as above, for reading.
        let result = unsafe {
            libc::process_vm_writev(
                self.process()?,
                (&raw const local).cast(),
                1,
                &remote(self.word(index), bytes.len())?,
                1,
                0,
            )
        };
        match usize::try_from(result) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(Errno::FAULT),
            Err(_) => Err(last_error()),
        }
    }

    fn process(&self) -> Result<libc::pid_t, Errno> {
        libc::pid_t::try_from(self.thread).map_err(|_| Errno::SRCH)
    }
}

fn remote(address: u64, length: usize) -> Result<libc::iovec, Errno> {
    let address = usize::try_from(address).map_err(|_| Errno::FAULT)?;
    Ok(libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: length })
}

/// The bytes of the kernel's `struct stat` of a file, and where in them its owner is.
pub(super) fn stat(file: impl AsFd) -> Result<(Vec<u8>, [usize; 2]), Errno> {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the structure is large enough, and the C library's is the kernel's on 64-bit
    // architectures.
    let result = unsafe { libc::fstat(file.as_fd().as_raw_fd(), status.as_mut_ptr()) };
    if result == -1 {
        return Err(last_error());
    }
    // SAFETY: it was zeroed before it was filled, so that every byte has a value.
    let bytes = unsafe {
        std::slice::from_raw_parts(status.as_ptr().cast::<u8>(), size_of::<libc::stat>())
    };
    let owner =
        [std::mem::offset_of!(libc::stat, st_uid), std::mem::offset_of!(libc::stat, st_gid)];
    Ok((bytes.to_vec(), owner))
}

/// The bytes of `struct statx` of a file, and where in them its owner is.
pub(super) fn statx(
    file: impl AsFd,
    flags: u32,
    mask: u32,
) -> Result<(Vec<u8>, [usize; 2]), Errno> {
    let mut status = [0_u8; size_of::<libc::statx>()];
    let flags = flags | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the path ends with a null byte, and the kernel fills as many bytes as there are.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            mask,
            status.as_mut_ptr(),
        )
    };
    if result == -1 {
        return Err(last_error());
    }
    let owner =
        [std::mem::offset_of!(libc::statx, stx_uid), std::mem::offset_of!(libc::statx, stx_gid)];
    Ok((status.to_vec(), owner))
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
