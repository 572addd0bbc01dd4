// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"sync"
	"time"

	pb "metropolis/node/core/network/workloads/spec"

	"github.com/containerd/log"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The deletion of a pod must not depend on the service: its namespace goes, and
// with it all that the service made. But a namespace that somebody keeps open
// stays, and the service would adopt its link when it is back. So if a removal
// finds the service away or silent, its caller gets a success, and it is tried
// again until it is done, for as long as this process lives:
//
//	Remove ─> attempt ─ done, refused ────────────────> returned
//	             └ away, silent ─> nil; tried again ─ done ─> logged
//	                                    └─ away, refused ─┘
//
// There is one removal for an id and path, however often it is requested. A
// further Remove triggers an attempt at once, and returns its outcome. Setup
// first completes the removals of its id.
//
// Why not on disk: after a restart of containerd, kubelet or containerd itself
// removes what is left of pods; and the service keeps nothing on disk either.

const (
	// How long the service may be silent before it is asked for its status,
	// and how long that answer may take. A service that answers is busy.
	silence = 900 * time.Millisecond
	// For one attempt: longer than the service waits for anything (30 s).
	attemptTimeout = 40 * time.Second
	// Between attempts, doubling. With thousands of removals under way it may
	// be longer: all together attempt no more often than one alone.
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second
	retryEach  = 5 * time.Millisecond
	// Concurrent attempts, for a service that has just come back.
	retriesAtOnce = 8
)

type target struct{ id, path string }

// removal is one that is under way. Guarded by removals.mu, except prompt.
type removal struct {
	tried  chan struct{} // closed at the end of the next attempt
	err    error         // the outcome of the last attempt
	prompt chan struct{} // capacity 1: try again at once
}

type removals struct {
	service  pb.WorkloadNetworkingClient
	places   chan struct{}
	patience time.Duration // how long to wait for an answer to Status

	mu      sync.Mutex
	pending map[target]*removal
}

func newRemovals(conn *grpc.ClientConn) *removals {
	return &removals{
		service:  pb.NewWorkloadNetworkingClient(conn),
		places:   make(chan struct{}, retriesAtOnce),
		patience: silence,
		pending:  map[target]*removal{},
	}
}

// remove returns the outcome, and nil if the service is away or silent.
func (r *removals) remove(ctx context.Context, what target) error {
	one, tried := r.begin(ctx, what)
	for {
		select {
		case <-tried:
			if err := r.outcome(one); !isAway(err) {
				return err
			}
			return nil
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(silence):
			if !r.answers(ctx) {
				log.G(ctx).Warnf("cniproxy: remove %q: the service is silent; it will be done when it answers", what.id)
				return nil
			}
		}
	}
}

// settle tries the removals of an id before the id is set up again, since later
// they would remove what was set up. It returns why one is not done.
func (r *removals) settle(ctx context.Context, id string) error {
	r.mu.Lock()
	var earlier []target
	for what := range r.pending {
		if what.id == id {
			earlier = append(earlier, what)
		}
	}
	r.mu.Unlock()
	for _, what := range earlier {
		one, tried := r.begin(ctx, what)
		select {
		case <-tried:
			if err := r.outcome(one); err != nil {
				return err
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-time.After(2 * silence):
			return status.Errorf(codes.Unavailable, "an earlier removal of %q is not done yet", id)
		}
	}
	return nil
}

// begin makes a removal, or triggers an attempt of the one under way. It
// returns a channel that is closed after that attempt.
func (r *removals) begin(ctx context.Context, what target) (*removal, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.pending[what]
	if one == nil {
		one = &removal{tried: make(chan struct{}), prompt: make(chan struct{}, 1)}
		r.pending[what] = one
		// It outlives the call.
		go r.carryOut(context.WithoutCancel(ctx), what, one)
	} else {
		select {
		case one.prompt <- struct{}{}:
		default:
		}
	}
	return one, one.tried
}

func (r *removals) outcome(one *removal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return one.err
}

// longest is the longest pause between attempts.
func (r *removals) longest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(retryMost, time.Duration(len(r.pending))*retryEach)
}

func (r *removals) carryOut(ctx context.Context, what target, one *removal) {
	err := r.attempt(ctx, what)
	if !isAway(err) {
		// A final answer for the caller. A refused caller asks again.
		r.tell(what, one, err, true)
		return
	}
	r.tell(what, one, err, false)
	log.G(ctx).Warnf("cniproxy: remove %q: %v; it will be tried again until it is done", what.id, err)
	pause := retryFirst
	for said := err; err != nil; pause = min(2*pause, r.longest()) {
		select {
		case <-one.prompt:
		case <-time.After(pause):
		}
		r.places <- struct{}{}
		err = r.attempt(ctx, what)
		<-r.places
		hopeless := status.Code(err) == codes.InvalidArgument
		r.tell(what, one, err, err == nil || hopeless)
		if err != nil && !isAway(err) && err.Error() != said.Error() {
			log.G(ctx).Errorf("cniproxy: remove %q, since the service is back: %v", what.id, err)
			said = err
		}
		if hopeless {
			return
		}
	}
	log.G(ctx).Infof("cniproxy: remove %q: done, now that the service is back", what.id)
}

// tell wakes those who wait for the outcome of an attempt.
func (r *removals) tell(what target, one *removal, err error, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last {
		delete(r.pending, what)
	}
	one.err = err
	close(one.tried)
	one.tried = make(chan struct{})
}

func (r *removals) attempt(ctx context.Context, what target) error {
	request := &pb.DetachRequest{WorkloadId: what.id}
	if what.path != "" {
		request.Netns = &pb.NetNSAttachment{NetnsPath: what.path}
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	_, err := r.service.Detach(ctx, request)
	return err
}

// answers returns whether the service answers at all, ready or not.
func (r *removals) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	_, err := r.service.Status(ctx, &pb.StatusRequest{Report: true})
	return err == nil
}

// isAway returns whether the service has not begun the request, or may not
// have: there is no service, it ends, or it was too busy. All other errors are
// answers.
func isAway(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}
