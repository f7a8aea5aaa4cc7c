//! SQLite's interface to files: ours over the one that was the default, which does the work.

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Once;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

use super::changes::Change;
use super::{Act, Op, Program, Verdict};

/// What SQLite takes for the VFS, and the one that does the work.
#[repr(C)]
struct Vfs {
    base: sqlite3_vfs,
    real: *mut sqlite3_vfs,
}

/// The head of the memory that SQLite gives a file; the real file follows.
#[repr(C)]
struct Head {
    base: sqlite3_file,
    own: *mut Own,
}

struct Own {
    path: PathBuf,
    program: Program,
    /// With its first sync the real VFS syncs the directory.
    new_name: Cell<bool>,
}

const NEW: c_int = ffi::SQLITE_OPEN_CREATE;
const LOG: c_int = ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;

/// Makes ours the VFS of every connection that names none.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: without a name it gives the default, which lives as long as the process.
        let real = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        assert!(!real.is_null(), "SQLite has a VFS");
        // SAFETY: not null, and nothing changes it.
        let base = unsafe { *real };
        // The functions that are taken over as they are do not look at the VFS that they are given.
        let base = sqlite3_vfs {
            szOsFile: base.szOsFile + size_of::<Head>() as c_int,
            pNext: ptr::null_mut(),
            zName: c"simulated".as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xSleep: Some(sleep),
            ..base
        };
        let ours = Box::leak(Box::new(Vfs { base, real }));
        // SAFETY: it is never freed, and complete.
        let code = unsafe { ffi::sqlite3_vfs_register(&raw mut ours.base, 1) };
        assert_eq!(code, ffi::SQLITE_OK, "a VFS can be registered");
    });
}

/// The real VFS, and its functions.
///
/// # Safety
/// `vfs` must be ours.
unsafe fn real_vfs(vfs: *mut sqlite3_vfs) -> (*mut sqlite3_vfs, sqlite3_vfs) {
    // SAFETY: `base` is the first field of ours, and the real one lives as long as the process, unchanged.
    unsafe {
        let real = (*vfs.cast::<Vfs>()).real;
        (real, *real)
    }
}

/// # Safety
/// `name` must be null or end with a zero byte, and live as long as what is returned.
unsafe fn path_of<'a>(name: *const c_char) -> Option<&'a Path> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the caller's word.
    let name = unsafe { CStr::from_ptr(name) };
    Some(Path::new(OsStr::from_bytes(name.to_bytes())))
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives the VFS that it got the function from, and a path or null.
    let ((real, methods), path) = unsafe { (real_vfs(vfs), path_of(name)) };
    let real_open = methods.xOpen.expect("every VFS opens");
    let ours = path.filter(|path| flags & ffi::SQLITE_OPEN_DELETEONCLOSE == 0 && super::is_simulated(path));
    let Some(path) = ours else {
        // SAFETY: SQLite's own arguments; the memory for the file is larger than the real VFS wants.
        return unsafe { real_open(real, name, file, flags, out) };
    };
    // SAFETY: SQLite gives memory for the file; a null says that there is nothing to close.
    unsafe { (*file).pMethods = ptr::null() };
    let Some(program) = super::opener(path) else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: behind the head is room for the real file.
    let behind = unsafe { file.cast::<Head>().add(1).cast::<sqlite3_file>() };
    // SAFETY: as above; the real VFS gets the name as SQLite made it.
    let code = unsafe { real_open(real, name, behind, flags, out) };
    if code != ffi::SQLITE_OK {
        // SAFETY: the real VFS has set the methods or left null.
        if unsafe { !(*behind).pMethods.is_null() } {
            Real(behind).close();
        }
        return code;
    }
    super::opened(path, flags & ffi::SQLITE_OPEN_MAIN_DB != 0);
    let own =
        Own { path: path.to_owned(), program, new_name: Cell::new(flags & NEW != 0 && flags & LOG != 0) };
    let own = Box::into_raw(Box::new(own));
    // SAFETY: the head has room before the real file.
    unsafe { file.cast::<Head>().write(Head { base: sqlite3_file { pMethods: &METHODS }, own }) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(vfs: *mut sqlite3_vfs, name: *const c_char, sync_dir: c_int) -> c_int {
    // SAFETY: SQLite gives the VFS that it got the function from, and a path.
    let ((real, methods), path) = unsafe { (real_vfs(vfs), path_of(name)) };
    let real_delete = methods.xDelete.expect("every VFS deletes");
    // SAFETY: SQLite's own arguments.
    let go = || unsafe { real_delete(real, name, sync_dir) };
    let Some((path, program)) = path.and_then(|path| Some((path, super::running(path)?))) else {
        return go();
    };
    if matches!(super::decide(&Op { program, path, act: Act::Delete }), Verdict::Dies | Verdict::Nothing) {
        return ffi::SQLITE_IOERR_DELETE;
    }
    let old = std::fs::read(path);
    let code = go();
    if let Ok(old) = old
        && code == ffi::SQLITE_OK
    {
        super::changed(path, Change::Delete { old });
        if sync_dir != 0 {
            super::synced_names(path);
        }
    }
    code
}

/// Nobody else gets on while one waits on the only thread: a lock that is held now is held for ever.
unsafe extern "C" fn sleep(vfs: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    if super::is_attached() {
        return microseconds;
    }
    // SAFETY: SQLite gives the VFS that it got the function from.
    let (real, methods) = unsafe { real_vfs(vfs) };
    // SAFETY: its own function.
    unsafe { methods.xSleep.expect("every VFS sleeps")(real, microseconds) }
}

/// An open file of the real VFS.
#[derive(Clone, Copy)]
struct Real(*mut sqlite3_file);

impl Real {
    fn methods(self) -> sqlite3_io_methods {
        // SAFETY: an open file has methods, which live as long as the process.
        unsafe { *(*self.0).pMethods }
    }

    fn close(self) -> c_int {
        // SAFETY: the file is open.
        unsafe { self.methods().xClose.expect("every file closes")(self.0) }
    }

    fn len(self) -> u64 {
        let mut len = 0;
        // SAFETY: the file is open, and `len` is there to be written.
        let code = unsafe { self.methods().xFileSize.expect("every file has a size")(self.0, &mut len) };
        assert_eq!(code, ffi::SQLITE_OK, "the size of an open file");
        len as u64
    }

    /// What stands from `offset` on, at most `amount`, as far as the file goes.
    fn read(self, offset: u64, amount: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0_u8; len.saturating_sub(offset).min(amount) as usize];
        if bytes.is_empty() {
            return bytes;
        }
        let (to, amount) = (bytes.as_mut_ptr().cast(), bytes.len() as c_int);
        // SAFETY: the file is open, and the buffer has so many bytes.
        let code =
            unsafe { self.methods().xRead.expect("every file reads")(self.0, to, amount, offset as i64) };
        assert_eq!(code, ffi::SQLITE_OK, "what stands in an open file");
        bytes
    }

    fn write(self, bytes: &[u8], offset: u64) -> c_int {
        let (from, amount) = (bytes.as_ptr().cast(), bytes.len() as c_int);
        // SAFETY: the file is open, and the buffer has so many bytes.
        unsafe { self.methods().xWrite.expect("every file writes")(self.0, from, amount, offset as i64) }
    }
}

/// # Safety
/// `file` must be one that [`open`] made ours, not yet closed.
unsafe fn parts<'a>(file: *mut sqlite3_file) -> (&'a Own, Real) {
    let head = file.cast::<Head>();
    // SAFETY: `open` wrote the head, with the real file behind it.
    unsafe { (&*(*head).own, Real(head.add(1).cast())) }
}

fn decide(own: &Own, act: Act) -> Verdict {
    super::decide(&Op { program: own.program, path: &own.path, act })
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file of ours once.
    let (own, real) = unsafe { (Box::from_raw((*file.cast::<Head>()).own), parts(file).1) };
    super::closed(&own.path);
    real.close()
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: SQLite calls this for a file of ours.
    let (own, real) = unsafe { parts(file) };
    let (amount, offset) = (amount as usize, offset as u64);
    // SAFETY: SQLite gives so many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), amount) };
    let (bytes, code) = match decide(own, Act::Write { offset, len: amount }) {
        Verdict::Done => (bytes, ffi::SQLITE_OK),
        Verdict::Full => (&bytes[..amount / 2], ffi::SQLITE_FULL),
        Verdict::Dies => (&bytes[..amount / 2], ffi::SQLITE_IOERR_WRITE),
        Verdict::Nothing => return ffi::SQLITE_IOERR_WRITE,
    };
    let old_len = real.len();
    let old = real.read(offset, bytes.len() as u64, old_len);
    super::changed(&own.path, Change::Write { offset, new: bytes.to_vec(), old, old_len });
    match real.write(bytes, offset) {
        ffi::SQLITE_OK => code,
        failed => failed,
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: i64) -> c_int {
    // SAFETY: SQLite calls this for a file of ours.
    let (own, real) = unsafe { parts(file) };
    let len_now = len as u64;
    if matches!(decide(own, Act::Truncate { len: len_now }), Verdict::Dies | Verdict::Nothing) {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    let old_len = real.len();
    let old = real.read(len_now, old_len, old_len);
    super::changed(&own.path, Change::Truncate { len: len_now, old, old_len });
    // SAFETY: the file is open.
    unsafe { real.methods().xTruncate.expect("every file truncates")(real.0, len) }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite calls this for a file of ours.
    let (own, real) = unsafe { parts(file) };
    match decide(own, Act::Sync) {
        Verdict::Done => {}
        Verdict::Full => return ffi::SQLITE_FULL,
        Verdict::Dies | Verdict::Nothing => return ffi::SQLITE_IOERR_FSYNC,
    }
    // SAFETY: the file is open.
    let code = unsafe { real.methods().xSync.expect("every file syncs")(real.0, flags) };
    if code == ffi::SQLITE_OK {
        super::synced(&own.path);
        if own.new_name.take() {
            super::synced_names(&own.path);
        }
    }
    code
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite calls this for a file of ours.
    let (own, real) = unsafe { parts(file) };
    let delete = if super::is_dead_on(&own.path, own.program) { 0 } else { delete };
    // SAFETY: the file is open.
    unsafe { real.methods().xShmUnmap.expect("the file has shared memory")(real.0, delete) }
}

/// What the real file does, unchanged.
macro_rules! passed_on {
    ($($name:ident = $method:ident($($arg:ident: $kind:ty),*) $(-> $out:ty)?;)*) => {
        $(unsafe extern "C" fn $name(file: *mut sqlite3_file, $($arg: $kind),*) $(-> $out)? {
            // SAFETY: SQLite calls this for a file of ours.
            let real = unsafe { parts(file).1 };
            // SAFETY: the file is open; SQLite's own arguments.
            unsafe { real.methods().$method.expect("the file of the real VFS has it")(real.0, $($arg),*) }
        })*
    };
}

passed_on! {
    read = xRead(to: *mut c_void, amount: c_int, offset: i64) -> c_int;
    file_size = xFileSize(size: *mut i64) -> c_int;
    lock = xLock(level: c_int) -> c_int;
    unlock = xUnlock(level: c_int) -> c_int;
    check_reserved_lock = xCheckReservedLock(out: *mut c_int) -> c_int;
    file_control = xFileControl(op: c_int, arg: *mut c_void) -> c_int;
    sector_size = xSectorSize() -> c_int;
    device_characteristics = xDeviceCharacteristics() -> c_int;
    shm_map = xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_lock = xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int;
    shm_barrier = xShmBarrier();
}

/// Of version 2: what is mapped would be written past us.
static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
